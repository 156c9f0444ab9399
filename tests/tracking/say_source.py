"""A program that prints the tags of its runs."""

from safe_ray.tracking.source import source_tags

if __name__ == "__main__":
    print("\n".join(f"{key}\t{value}" for key, value in source_tags().items()))
