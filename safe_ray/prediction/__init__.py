"""A trained head at work: images of any origin to classes and probabilities.

`heads` finds the head that a person means, `predictor` makes a model of it in plain PyTorch,
`images` lists what shall be classified, `pictures` decodes it, `rows` writes what comes out,
and `judging` compares it with labels where there are some.
"""
