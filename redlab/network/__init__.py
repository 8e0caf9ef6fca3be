"""Any nn.Module as redlab sees it: its layers, its traced graph, its cost and its accuracy. Start with `layers`."""
