"""The meta-learners of initialisations, by the name that the command line and a space know them by."""

from __future__ import annotations

from collections.abc import Callable

from metasearch.meta.functional import FunctionalNetwork
from metasearch.meta.hypernetwork import Hypernetwork
from metasearch.meta.maml import Maml
from metasearch.meta.meta_sgd import MetaSgd
from metasearch.meta.method import Inner, Loss, Method
from metasearch.meta.protonet import ProtoNet
from metasearch.meta.reptile import Reptile

Maker = Callable[[FunctionalNetwork, Inner, Loss], Method]


METHODS: dict[str, Maker] = {
    "maml": lambda network, inner, loss: Maml(network, inner, loss),
    "fomaml": lambda network, inner, loss: Maml(network, inner, loss, first_order=True),
    "anil": lambda network, inner, loss: Maml(network, inner, loss, head_only=True),
    "reptile": lambda network, inner, loss: Reptile(network, inner, loss),
    "protonet": lambda network, inner, loss: ProtoNet(network, loss),
    "hypernetwork": lambda network, inner, loss: Hypernetwork(network, loss, inner),
    "metasgd": lambda network, inner, loss: MetaSgd(network, inner, loss),
}
"""Each binds its method to a network, an inner loop (which not all of them have) and a loss."""
