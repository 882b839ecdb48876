"""One rank of a noisy run; writes its noise and its weights into the folder that it is given."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Small

folder = Path(sys.argv[1])
trainer = Small.trainer(folder / "run")
trainer.train()
noise = [noise for is_training, noise in trainer.model.embedded if is_training]
told = {"weights": trainer.model.state_dict(), "noise": noise}
torch.save(told, folder / f"{trainer.ranks.rank}.pt")
