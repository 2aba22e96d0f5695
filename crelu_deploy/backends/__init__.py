"""One module per runtime: ``build`` makes a target's artifact, ``load`` a runner of it."""
