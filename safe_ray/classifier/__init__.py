"""One task in Python, as scikit-learn has it: fit, predict, score, explain, save, load.

`estimator` has the class that people use, `samples` makes one kind of thing of what they call
images, `fitting` trains in this process with the sweep's own functions, and `explanation` is where
a head looks.
"""
