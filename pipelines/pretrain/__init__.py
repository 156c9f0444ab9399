"""How the embedded backbone and its benchmark were made: artwork, captions, training, export."""
