"""Dense maps: from images through the trunk into the feature store."""
