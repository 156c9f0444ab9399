"""open_clip models cut in three: the frozen trunk, the attention pooling, the text tower."""
