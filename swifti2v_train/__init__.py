"""Training of both stages and of the tiny autoencoder: ``python -m swifti2v_train``, see README.md.

An extra (``pip install -e .[train]``): the nodes and the core never import it, and the registry's archive
leaves it out.
"""
