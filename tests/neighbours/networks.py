"""Networks that the tests of Part III share."""

from torch import nn

from nadkit import seeds


def fresh(make, *args, **options):
    """A network in float64 and eval mode, with batch statistics, scales and shifts that are no ones and zeros."""
    with seeds.seeded(0, "network"):
        model = make(*args, **options).double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for values in (module.weight, module.bias, module.running_mean):
                    nn.init.normal_(values)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()
