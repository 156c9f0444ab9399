"""A small CLIP and a small benchmark that ship with the package, so that it runs offline.

`pictogram-rn-128.json` and `pictogram-rn-128.safetensors` are an open_clip model: a ModifiedResNet
with attention pooling at 128 px, and a text transformer, pre-trained on captioned emoji and icons.
The Parquet files are data sets of drawings in styles that the pre-training never saw.
`MODEL_CARD.md` says how they were made and what they are good for, `ATTRIBUTION.md` who drew what
under which licence. `pipelines/pretrain` makes all of it again.
"""
