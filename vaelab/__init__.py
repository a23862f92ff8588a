"""The package behind VAE Lab: a book about how deep latent-variable models collapse and what keeps them alive.

A module imports only from the modules above it in this list:

`files`        writing a file whole or not at all
`lab`          where a run happens: preset, device, seeds
`text`         sentences: vocabulary, corpora, batches
`ink`          drawn frames, clip by clip
`data`         data sets as tensors on the device
`networks`     encoders, decoders and classifiers, without losses
`divergences`  every KL term
`posteriors`   how a code is drawn
`training`     the one training loop: progress, history, checkpoint and resume; the controller of beta
`models`       what a chapter trains, one file each, each with its loss
`metrics`      how well a trained model does, and by which yardstick
`runs`         many runs: recorded, resumed, audited
`ledger`       claims, intervals, verdicts
`plots`        pictures
`semi_supervised`  the experiment that Days 13 to 15 share
`explosion`    the experiment that Parts 4 to 7 share
`widgets`      sliders
`book`         the notebooks themselves: executed, fingerprinted, checked
"""

from vaelab.lab import Lab, device, preset, start

__version__ = "0.1.0"
__all__ = ["Lab", "__version__", "device", "preset", "start"]
