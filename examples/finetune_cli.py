"""The same fine-tuning from a YAML file: there the monitor is three lines, and no Python is written.

python examples/finetune_cli.py fit --config examples/finetune_folder.yaml --data.folder flowers
"""

from __future__ import annotations

from finetune_folder import Classifier, FolderData
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI


class FolderCLI(LightningCLI):
    """The folder knows how many classes there are, and both sides need one image size."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.class_count", "model.class_count", apply_on="instantiate")
        parser.link_arguments("data.image_size", "model.image_size")


if __name__ == "__main__":
    FolderCLI(Classifier, FolderData, save_config_kwargs={"overwrite": True})
