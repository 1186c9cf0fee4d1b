"""From a torch model to a bundle. Only this folder of mpc imports torch."""
