"""The card of a model, as the Hugging Face Hub shows it: README.md with a head of YAML.

Its fields are those of https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kosmos2_jax.evaluation.report import comparison


@dataclasses.dataclass(frozen=True)
class SourceFacts:
    """What a model was trained or measured on.

    Attributes:
      name: of the source.
      split: of it.
      documents: that were read.
      reasons: how many things were left out or mended, by reason.
    """

    name: str
    split: str
    documents: int
    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
      name: of the model.
      began_with: the checkpoint that training began with, in words.
      base_model: its name on the Hub; empty where it has none.
      license: identifier on the Hub; empty where nobody has said.
      sources: of the data.
      recipe: settings of the training by their names.
      before: figures of what training began with, by name.
      after: figures of this model.
      limits: sentences.
      pictures: heading to the path of a picture beside the card.
      is_adapter: whether it is an adapter of peft's, not a whole model.
    """

    name: str
    began_with: str
    base_model: str
    license: str
    sources: Sequence[SourceFacts]
    recipe: Mapping[str, Any]
    before: Mapping[str, float]
    after: Mapping[str, float]
    limits: Sequence[str]
    pictures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_adapter: bool = False


def model_card(facts: CardFacts) -> str:
    """The text of README.md."""
    kind = "An adapter (LoRA) for" if facts.is_adapter else "A Kosmos-2, fine-tuned from"
    began = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"
    blocks = [
        _head(facts),
        f"# {facts.name}",
        f"{kind} {began if facts.base_model else facts.began_with}. It finds phrases in pictures, "
        "says what is in a box, and describes pictures with boxes for what it names. This card was "
        "written by the program that trained it.",
        "## Use",
        _ADAPTER_USE if facts.is_adapter else _MODEL_USE,
        "## Data",
        _sources(facts.sources),
        "## Recipe",
        "\n".join(f"- {name}: {value}" for name, value in facts.recipe.items()),
    ]
    if facts.after:
        blocks += ["## Scores", comparison(facts.before, facts.after)]
    blocks += ["## Limits", "\n".join(f"- {limit}" for limit in facts.limits)]
    blocks += [
        f"## {heading}\n\n![{heading}](<{file}>)" for heading, file in facts.pictures.items()
    ]
    return "\n\n".join(blocks) + "\n"


def _head(facts: CardFacts) -> str:
    """Metadata; each value is JSON, which YAML reads."""
    values: dict[str, Any] = {"language": ["en"]}
    if facts.license:
        values["license"] = facts.license
    if facts.base_model:
        values["base_model"] = facts.base_model
    values |= {
        "library_name": "peft" if facts.is_adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["kosmos-2", "grounding", *(["lora"] if facts.is_adapter else [])],
    }
    if facts.after:
        measured = [source.name for source in facts.sources if source.split != "train"]
        dataset = ", ".join(dict.fromkeys(measured)) or "held-out data"
        result = {
            "task": {"type": "image-text-to-text"},
            "dataset": {"type": "private", "name": dataset},
            "metrics": [
                {"type": name, "value": round(value, 4), "name": name}
                for name, value in facts.after.items()
            ],
        }
        values["model-index"] = [{"name": facts.name, "results": [result]}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _sources(sources: Sequence[SourceFacts]) -> str:
    rows = ["| source | split | pictures or documents | left out or mended |", "|---|---|---:|---|"]
    for source in sources:
        reasons = "; ".join(f"{reason}: {count:,}" for reason, count in source.reasons.items())
        rows.append(f"| {source.name} | {source.split} | {source.documents:,} | {reasons} |")
    return "\n".join(rows)


_MODEL_USE = """\
In transformers:

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
prompt = "<grounding><phrase> a dog</phrase>"
inputs = processor(text=prompt, images=Image.open("PICTURE").convert("RGB"), return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=64))[0])
```

In kosmos2_jax: `kosmos2 ground PICTURE "a dog" --model FOLDER`."""

_ADAPTER_USE = """\
In transformers with peft:

```python
import peft
from transformers import Kosmos2ForConditionalGeneration

model = Kosmos2ForConditionalGeneration.from_pretrained("BASE")
model = peft.PeftModel.from_pretrained(model, "FOLDER")
```

`kosmos2 convert BASE MERGED --to hf --adapter FOLDER` makes a whole model of both."""
