"""Networks: our own CIFAR nets, and any torchvision or timm classifier by name."""
