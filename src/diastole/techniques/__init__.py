"""One file per technique, named as it is called with ``--use``. Nobody but the registry imports them."""
