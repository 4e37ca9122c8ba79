"""Training of both stages and of the tiny autoencoder: ``python -m swifti2v_train``.

An extra (``pip install -e .[train]``): nothing of the nodes or of the rest of the core imports it, and
it is not in the registry's archive. See ``swifti2v_train/README.md``.
"""
