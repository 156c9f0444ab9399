"""A head as one self-contained bundle: open_clip's files, an ONNX graph, a torch.export program."""
