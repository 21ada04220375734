"""The shell of pgolf: the only package that knows paths, the network and the Hub."""

from .siblings import check_siblings

check_siblings()
