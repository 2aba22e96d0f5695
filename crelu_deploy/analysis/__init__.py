"""The CReLU paper's analyses of a trained network, as numbers and as pictures.

Each analysis is one module of functions on tensors and layers; ``layers`` finds these in a network,
``images`` reads pictures, and ``plots`` alone imports matplotlib.
"""
