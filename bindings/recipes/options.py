"""What the recipes' commands have in common: their options."""

import typer

SOURCE = "A folder of pictures, a .csv, .tsv or .jsonl of captions, a .npy or .npz, or tar shards."
SEED = "Seed of everything that is drawn."
# the options of every pretrain command
OUT = typer.Option("run", help="Folder of the run; the same command goes on where an interrupted one stopped.")
SET = typer.Option([], "--set", help="Change a size of the preset's model, as in width=256; may be repeated.")
STEPS = typer.Option(None, help="Of the optimiser.")
EPOCHS = typer.Option(None, help="Instead of steps.")
BATCH = typer.Option(None, help="Samples a step, over all ranks.")
PARTS = typer.Option(1, help="Compute a batch in so many parts, to save memory; the loss is that of the whole.")
SHARD = typer.Option(False, help="Under torchrun: share parameters out among ranks instead of copying them.")
RECOMPUTE = typer.Option(False, help="Compute activations again backwards instead of keeping them: less memory.")
RATE = typer.Option(None, help="The learning rate after warm-up.")
WARM_UP = typer.Option(None, help="Steps of warm-up.")
PRECISION = typer.Option("float32", help="float32, or bfloat16 or float16 computation with float32 parameters.")
LEAST_AREA = typer.Option(0.05, help="Share of a picture that a random cut shows at least; 1: no cuts.")
MIRROR = typer.Option(True, help="Mirror half of the pictures.")
HELD_OUT = typer.Option(None, help="Like the source: what the model is judged on at every checkpoint.")
WORKERS = typer.Option(0, help="Processes that read pictures.")
DEVICE = typer.Option(None, help="cpu or cuda; a GPU if there is one.")
LOG_EVERY = typer.Option(10, help="Steps.")
# and of those that judge a model
MODEL = typer.Argument(help="What a pretrain command wrote: run/model.safetensors.")
CLASSES = "With a folder of pictures for each class, or arrays with labels: "
MASKS = typer.Option(1, min=1, help="Of each picture, for a masked ImageGPT: what most of them say counts.")
JSON = typer.Option(None, "--json", help="Write the results to this file.")
SAVE_EVERY = typer.Option(1000, help="Steps from checkpoint to checkpoint.")
