"""RecBole's DCNv2 on given parts, run by RecBole's own Python: `dcn_v2.py FOLDER SETTINGS`.

FOLDER holds clicks/clicks.{train,valid,test}.inter, clicks.user and clicks.item; SETTINGS is JSON that
overrides RecBole's defaults. The last line of the output is JSON: valid and test figures, seconds, epochs.
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
    "benchmark_filename": ["train", "valid", "test"],
    "load_col": {
        "inter": ["user_id", "item_id", "label"],
        "user": ["user_id", "gender", "age", "occupation"],
        "item": ["item_id", "year", "genres"],
    },
    "train_neg_sample_args": None,
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": None, "order": "RO", "mode": "labeled"},
    "metrics": ["AUC", "LogLoss"],
    "valid_metric": "AUC",
    "metric_decimal_place": 6,
    "use_gpu": False,
    "show_progress": False,
    "filter_inter_by_user_or_item": False,
}


def main(folder: Path, settings: dict[str, object]) -> None:
    content = {**FIXED, **settings, "data_path": str(folder), "checkpoint_dir": str(folder / "saved")}
    config = Config(model="DCNV2", dataset="clicks", config_dict=content)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model("DCNV2")(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "DCNV2")(config, model)
    begun = time.perf_counter()
    _, best = trainer.fit(train, valid, saved=True, show_progress=False)
    seconds = time.perf_counter() - begun
    figures = trainer.evaluate(test, load_best_model=True, show_progress=False)
    result = {
        "valid_auc": float(best["auc"]),
        "auc": float(figures["auc"]),
        "log_loss": float(figures["logloss"]),
        "seconds": seconds,
        "epochs": len(trainer.train_loss_dict),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    sys.argv = sys.argv[:1]  # RecBole reads the command line, too
    main(folder, settings)
