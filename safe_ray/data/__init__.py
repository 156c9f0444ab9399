"""Data sets as people have them: manifests, their readers, episodes, prompts, images and views."""
