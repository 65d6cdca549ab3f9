"""An epoch of RecBole's SASRec, run by RecBole's own Python: `sasrec.py FOLDER SETTINGS`.

FOLDER holds beauty/beauty.inter; SETTINGS is JSON that overrides RecBole's defaults. The last line of the
output is JSON: seconds of the epoch, its loss, and how many sequences it learned from.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_logger, init_seed

FIXED = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "train_neg_sample_args": None,
    "loss_type": "CE",
    "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
    "use_gpu": False,
    "show_progress": False,
}


def main(folder: Path, settings: dict[str, object]) -> None:
    content = {**FIXED, **settings, "data_path": str(folder), "checkpoint_dir": str(folder / "saved")}
    config = Config(model="SASRec", dataset="beauty", config_dict=content)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    train, _, _ = data_preparation(config, create_dataset(config))
    model = get_model("SASRec")(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    begun = time.perf_counter()
    loss = trainer._train_epoch(train, 0, show_progress=False)
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": seconds, "loss": float(loss), "sequences": len(train._dataset)}))


if __name__ == "__main__":
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    sys.argv = sys.argv[:1]  # RecBole reads the command line, too
    main(folder, settings)
