"""Small networks for the tests."""

from torch import nn


class Net(nn.Module):
    """Modules by name, and a function of them and the input."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)
