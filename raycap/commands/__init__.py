"""The list of commands, and what `raycap --help` says about them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command. The first section is its own: its flags need no prefix."""

    summary: str
    function: str  # module:function, called with the config, returns the exit code
    sections: tuple[str, ...]
    # The option of the command's own section that the words before the flags fill; "": they are
    # SOURCE.
    words: str = ""
    # The option that they fill if there are several.
    several: str = ""


COMMANDS = {
    "inspect": Command(
        "read every picture of a source and report what is there and what cannot be read",
        "raycap.commands.inspect:inspect",
        ("inspect", "source", "fetch", "reading", "cluster"),
    ),
    "caption": Command(
        "write a caption for every picture of a source into a table, or print those of single "
        "photos",
        "raycap.commands.caption:caption",
        (
            "caption",
            "captioner",
            "finish",
            "flags",
            "source",
            "fetch",
            "reading",
            "search",
            "cluster",
        ),
        several="photos",
    ),
    "extract": Command(
        "encode every picture once, for training, into a table of features",
        "raycap.commands.extract:extract",
        ("extract", "source", "fetch", "reading", "encoder", "cluster"),
    ),
    "train": Command(
        "train a captioner on pictures with human captions, or fine-tune one (--model); the same "
        "command resumes it",
        "raycap.commands.train:train",
        (
            "train",
            "captioner",
            "source",
            "fetch",
            "reading",
            "vocabulary",
            "encoder",
            "decoder",
            "search",
            "cluster",
        ),
    ),
    "tune": Command(
        "search options: train many captioners, stop the bad ones early, keep the best",
        "raycap.commands.tune:tune",
        (
            "tune",
            "train",
            "source",
            "fetch",
            "reading",
            "vocabulary",
            "encoder",
            "decoder",
            "search",
            "cluster",
        ),
    ),
    "combine": Command(
        "make one captioner of several trained ones: an ensemble, or the mean of their weights",
        "raycap.commands.combine:combine",
        ("combine",),
        words="captioners",
    ),
    "evaluate": Command(
        "score tables of captions, or captioners, against human captions, with confidence "
        "intervals",
        "raycap.commands.evaluate:evaluate",
        (
            "evaluate",
            "metric",
            "source",
            "caption",
            "captioner",
            "fetch",
            "reading",
            "search",
            "cluster",
        ),
        words="tables",
    ),
    "report": Command(
        "write one HTML page about caption tables, training runs or sweeps",
        "raycap.commands.report:report",
        ("report", "evaluate", "metric", "source", "fetch", "reading"),
        words="tables",
    ),
}

ABOUT = (
    "Captions large collections of pictures, and trains captioners, on a laptop or a Ray cluster."
)
EXAMPLES = """\
examples:
  raycap caption photo.jpg                                print its caption
  raycap caption photos/ --model DIR --out captions/      a table with a caption for each picture
  raycap caption photos/ --model smolvlm --prompt "..."   a model of Hugging Face
  raycap caption photos/ --model http://localhost:8000/v1 a server, such as vLLM or Ollama
  raycap inspect photos/                                  a folder, with its sub-folders
  raycap inspect s3://bucket/pictures                     anything that fsspec can open
  raycap inspect urls.txt --fetch.threads 128             a list of URLs, one a line
  raycap inspect pairs.csv --source.column image_url      a table with a column of URLs
  raycap inspect flickr8k/ --config run.yaml --limit 500  options from a file, overridden by flags
  raycap evaluate a/ b.json --references flickr8k/ --split dev     compare two tables of captions

`raycap COMMAND --help` lists every option of a command. `--print-config` prints the config that a
command would use.
"""
