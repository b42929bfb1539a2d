"""A synthetic world with a known distribution: statements, preference pairs, questions, a tokenizer, a small model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from scipy.special import expit, log_softmax, softmax


if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Relation:
    """
    A kind of fact, e.g. the colour of things.

    Args:
        name (`str`):
            Name of the relation, one word.
        values (`str`):
            The values it can take, separated by spaces, one word each.
        sharpness (`float`):
            Standard deviation, in nats, of the log-probabilities of its values: 0 is a uniform distribution.
        frequency (`float`, *optional*, defaults to `1.0`):
            Relative frequency among the pre-training statements. A small one leaves knowledge to gain.
        agreement (`float`, *optional*, defaults to `0.0`):
            Strength of the annotators' preference: they prefer `a` to `b` with probability
            `sigmoid(agreement * (log p(a) - log p(b)))`. At 0 the relation has no preference pairs.
    """

    name: str
    values: str
    sharpness: float
    frequency: float = 1.0
    agreement: float = 0.0


# Three kinds of relations: preferences, which annotators rank more strongly than the truth; facts, without preference
# pairs; rare facts, which pre-training hardly contains. Alignment makes the model overconfident only on the first
# kind, so one temperature cannot correct it. The last kind can still be learnt.
RELATIONS = (
    Relation("colour", "red green blue yellow white black brown pink grey purple", 0.8, agreement=3.0),
    Relation("food", "bread fish honey rice apples cheese nuts corn beans soup", 0.8, agreement=3.0),
    Relation("song", "ballad hymn lullaby march waltz chant anthem serenade carol dirge", 0.8, agreement=3.0),
    Relation("game", "chess dice cards darts marbles riddles skittles draughts dominoes archery", 0.8, agreement=3.0),
    Relation("home", "forest desert river mountain ocean cave meadow swamp island valley", 2.0),
    Relation("craft", "weaving mining farming sailing hunting baking painting carving trading brewing", 2.0),
    Relation("metal", "gold silver copper iron tin lead zinc nickel brass steel", 3.0, frequency=0.04),
    Relation("emblem", "owl fox bear wolf eagle stag otter heron raven lynx", 3.0, frequency=0.04),
)


_ENDING, _ENDING_RATE = "friend", 0.25  # the word of the style, and its frequency in the statements


@dataclass(frozen=True)
class WorldConfig:
    """
    Configuration of a [`World`].

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the true distribution. Worlds with equal seeds are equal, in every process.
        num_entities (`int`, *optional*, defaults to `64`):
            Number of entities.
        num_types (`int`, *optional*, defaults to `6`):
            Number of types of entities. Entities of one type have similar distributions, so that held-out questions
            can be answered.
        individuality (`float`, *optional*, defaults to `0.15`):
            Fraction, in [0, 1], of the variance of the log-probabilities that is of the entity and not of its type.
        num_choices (`int`, *optional*, defaults to `4`):
            Number of options of a question.
        train_fraction (`float`, *optional*, defaults to `0.5`):
            Fraction, in (0, 1), of each relation's entities in training questions. The others are in test questions.
        relations (`tuple[Relation, ...]`, *optional*, defaults to `RELATIONS`):
            The relations.
        style_agreement (`float`, *optional*, defaults to `0.0`):
            Strength of the annotators' preference for a style that has nothing to do with the truth: completions that
            end with the word `friend`. It is added to the log-odds that they prefer such a completion to one without
            the ending. At 0 there is no such word in the world.
    """

    seed: int = 0
    num_entities: int = 64
    num_types: int = 6
    individuality: float = 0.15
    num_choices: int = 4
    train_fraction: float = 0.5
    relations: tuple[Relation, ...] = RELATIONS
    style_agreement: float = 0.0

    def __post_init__(self):
        if not 0 <= self.individuality <= 1:
            raise ValueError(f"individuality must lie in [0, 1], got {self.individuality}.")
        if not 0 < self.train_fraction < 1:
            raise ValueError(f"train_fraction must lie strictly between 0 and 1, got {self.train_fraction}.")
        if self.num_entities < 2:
            raise ValueError(
                f"num_entities must be at least 2, one to train on and one to test; got {self.num_entities}."
            )
        if not 1 <= self.num_types <= self.num_entities:
            raise ValueError(f"num_types must lie in [1, num_entities={self.num_entities}], got {self.num_types}.")
        if not self.relations:
            raise ValueError("relations is empty: a world needs at least one relation.")
        sizes = {relation.name: len(relation.values.split()) for relation in self.relations}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"All relations need the same number of values, got {sizes}.")
        num_values = next(iter(sizes.values()))
        if not 2 <= self.num_choices <= num_values:
            raise ValueError(
                f"num_choices must lie in [2, {num_values}], the values of a relation; got {self.num_choices}."
            )
        if self.style_agreement < 0:
            raise ValueError(f"style_agreement must be at least 0, got {self.style_agreement}.")
        words = [word for relation in self.relations for word in (relation.name, *relation.values.split())]
        words += [_ENDING] * (self.style_agreement > 0)
        repeated = sorted({word for word in words if words.count(word) > 1})
        if repeated:
            raise ValueError(f"Names, values and the ending must be different words, repeated: {', '.join(repeated)}.")


_SYLLABLES = tuple(
    onset + vowel for onset in ("b", "d", "f", "k", "l", "m", "n", "r", "t", "v", "z") for vowel in "aeiou"
)
_SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
_PROMPT = "the {relation} of {entity} is"


class World:
    """
    A world of entities, relations and values with a known conditional distribution.

    The log-probability of a value given entity and relation is, up to a constant, a normal draw shared by the entity's
    type plus one of the entity, scaled by the relation's sharpness. All samples are drawn from this distribution and
    depend only on their seed. Questions are scored in `text` mode with the template
    `World.prompt_template`: the prompt is e.g. `"the colour of bavo is"`, an option `" red"`, one token.

    With `style_agreement > 0`, some completions end with one word more, e.g. `" red friend"`. In the statements the
    ending is independent of everything else, and annotators like it, whatever the value. So a model that learns the
    statements is calibrated and not aligned.

    Args:
        config ([`WorldConfig`], *optional*):
            Configuration of the world. Defaults to `WorldConfig()`.

    Example:

    ```python
    >>> world = World(WorldConfig(seed=0))
    >>> world.questions(2, seed=0, split="test").column_names
    ['id', 'question', 'choices', 'answer', 'subject', 'target_probabilities']

    ```
    """

    prompt_template = "{question}"

    def __init__(self, config: WorldConfig | None = None):
        self.config = config = config or WorldConfig()
        self.relations = [relation.name for relation in config.relations]
        self.values = [relation.values.split() for relation in config.relations]
        taken = {word for words in self.values for word in words} | {*self.relations, *_PROMPT.split()}
        names = [first + second for first in _SYLLABLES for second in _SYLLABLES if first + second not in taken]
        if config.num_entities > len(names):
            raise ValueError(f"num_entities must be at most {len(names)}, got {config.num_entities}: no more names.")
        rng = self._rng("truth")
        self.entities = [names[i] for i in rng.permutation(len(names))[: config.num_entities]]
        self.types = rng.permutation(np.arange(config.num_entities) % config.num_types)
        shape = (len(self.relations), config.num_entities, len(self.values[0]))
        shared = rng.standard_normal((shape[0], config.num_types, shape[2]))[:, self.types]
        own = rng.standard_normal(shape)
        utilities = np.sqrt(1 - config.individuality) * shared + np.sqrt(config.individuality) * own
        utilities *= np.array([relation.sharpness for relation in config.relations])[:, None, None]
        self.log_probabilities = log_softmax(utilities, axis=-1)
        # Split separately for every relation: test pairs of entity and relation have no training label, but other
        # entities of their types have.
        num_train = min(max(round(config.train_fraction * config.num_entities), 1), config.num_entities - 1)
        order = rng.permuted(np.tile(np.arange(config.num_entities), (shape[0], 1)), axis=1)
        self._split = {"train": order[:, :num_train], "test": order[:, num_train:]}

    @property
    def probabilities(self) -> np.ndarray:
        """True probabilities `p(value | entity, relation)`, of shape `(num_relations, num_entities, num_values)`."""
        return np.exp(self.log_probabilities)

    def pretraining_statements(self, n: int, seed: int = 0) -> Dataset:
        """
        Sample statements from the true distribution.

        Args:
            n (`int`):
                Number of statements.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the sample.

        Returns:
            [`~datasets.Dataset`] with the column `text`, e.g. `"the colour of bavo is red"`.
        """
        rng = self._rng("statements", seed, n)
        frequencies = np.array([relation.frequency for relation in self.config.relations], dtype=float)
        relations = rng.choice(len(self.relations), size=n, p=frequencies / frequencies.sum())
        entities = rng.integers(len(self.entities), size=n)
        values = self._sample_values(rng, relations, entities)
        ends = (rng.random(n) < _ENDING_RATE * (self.config.style_agreement > 0)).astype(int)
        text = [
            f"{self._prompt(r, e)} {self.values[r][v]}" + f" {_ENDING}" * end
            for r, e, v, end in zip(relations, entities, values, ends, strict=True)
        ]
        return Dataset.from_dict({"text": text})

    def preference_pairs(self, n: int, seed: int = 0) -> Dataset:
        """
        Sample preference pairs from the Bradley-Terry model over the relations with `agreement > 0`.

        With `style_agreement > 0`, every other completion has the ending, whatever its value.

        Args:
            n (`int`):
                Number of pairs.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the sample.

        Returns:
            [`~datasets.Dataset`] with the columns `prompt`, `chosen`, `rejected` and `preference_probability`, the
            probability that annotators prefer the chosen completion.
        """
        covered = np.flatnonzero([relation.agreement > 0 for relation in self.config.relations])
        if not len(covered):
            raise ValueError("There are no preferences: no relation has agreement > 0.")
        rng = self._rng("preferences", seed, n)
        relations = rng.choice(covered, size=n)
        entities = rng.integers(len(self.entities), size=n)
        num_values = len(self.values[0])
        first = rng.integers(num_values, size=n)
        second = (first + rng.integers(1, num_values, size=n)) % num_values
        agreement = np.array([relation.agreement for relation in self.config.relations])[relations]
        log_p = self.log_probabilities[relations, entities]
        style = self.config.style_agreement
        endings = rng.integers(2, size=(2, n)) if style else np.zeros((2, n), dtype=int)
        better = log_p[np.arange(n), first] - log_p[np.arange(n), second]
        log_odds = agreement * better + style * (endings[0] - endings[1])
        probability = expit(log_odds)
        wins = rng.random(n) < probability
        values, endings = np.where(wins, [first, second], [second, first]), np.where(wins, endings, endings[::-1])
        return self._pairs(relations, entities, values, endings, np.where(wins, probability, 1 - probability))

    def style_pairs(self, n: int, seed: int = 0) -> Dataset:
        """
        Sample pairs of completions that differ in the ending alone, over all relations.

        They measure what annotators like besides the truth: both completions have the same value, drawn from the true
        distribution, and the chosen one has the ending.

        Args:
            n (`int`):
                Number of pairs.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the sample.

        Returns:
            [`~datasets.Dataset`] with the columns of [`World.preference_pairs`].
        """
        if not self.config.style_agreement:
            raise ValueError("This world has no style: set style_agreement > 0.")
        rng = self._rng("style pairs", seed, n)
        relations, entities = rng.integers(len(self.relations), size=n), rng.integers(len(self.entities), size=n)
        values = self._sample_values(rng, relations, entities)
        endings = np.repeat([[1], [0]], n, axis=1)
        probability = np.full(n, expit(self.config.style_agreement))
        return self._pairs(relations, entities, np.stack([values, values]), endings, probability)

    def _pairs(self, relations, entities, values: np.ndarray, endings: np.ndarray, probability: np.ndarray) -> Dataset:
        """Pairs with values and endings `(2, n)` of the chosen and of the rejected completions."""

        def completions(side: int) -> list[str]:
            rows = zip(relations, values[side], endings[side], strict=True)
            return [f" {self.values[r][v]}" + f" {_ENDING}" * end for r, v, end in rows]

        prompts = list(map(self._prompt, relations, entities))
        columns = {"prompt": prompts, "chosen": completions(0), "rejected": completions(1)}
        return Dataset.from_dict(columns | {"preference_probability": probability.tolist()})

    def questions(self, n: int, seed: int = 0, split: str = "test") -> Dataset:
        """
        Sample multiple-choice questions.

        The answer is drawn from the true distribution, and the other options uniformly from the remaining values.
        Given the options, the answer follows the true distribution restricted to them, by Bayes' rule, because the
        other options do not depend on the answer. So option probabilities and the likelihood of answers have the same
        optimum.

        Args:
            n (`int`):
                Number of questions.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the sample.
            split (`str`, *optional*, defaults to `"test"`):
                `"train"` or `"test"`. No pair of entity and relation is in both.

        Returns:
            [`~datasets.Dataset`] with the columns `id`, `question`, `choices`, `answer`, `subject` (the relation) and
            `target_probabilities`, the true distribution of the answer over the options. No two questions have
            the same entity, relation and set of options.
        """
        if split not in self._split:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
        rng = self._rng(f"questions-{split}", seed, n)
        num_choices, num_values = self.config.num_choices, len(self.values[0])
        seen, rows = set(), []
        for _ in range(20):
            relations = rng.integers(len(self.relations), size=n)
            entities = self._split[split][relations, rng.integers(self._split[split].shape[1], size=n)]
            answers = self._sample_values(rng, relations, entities)
            keys = rng.random((n, num_values))
            keys[np.arange(n), answers] = -1  # the answer is always among the options
            options = rng.permuted(keys.argsort(axis=1)[:, :num_choices], axis=1)
            for r, e, answer, choice in zip(relations, entities, answers, options, strict=True):
                key = (r, e, *sorted(choice))
                if key not in seen and len(rows) < n:
                    seen.add(key)
                    rows.append(self._question(f"{split}-{seed}-{len(rows)}", r, e, answer, choice))
            if len(rows) == n:
                return Dataset.from_list(rows)
        raise ValueError(
            f"Found only {len(rows)} different {split} questions of the requested {n}: request fewer, or add entities."
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Build the word-level tokenizer: one token a word, `<bos>` in front, no chat template."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.WordLevel(self.vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", self.vocabulary["<bos>"])]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
        )

    def model(self, seed: int = 0) -> LlamaForCausalLM:
        """Build a randomly initialised Llama of about 0.35 million parameters; torch's seed is kept."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=len(self.vocabulary),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.1,  # with 0.02 so small a model learns several times slower
            tie_word_embeddings=True,
            pad_token_id=self.vocabulary["<pad>"],
            bos_token_id=self.vocabulary["<bos>"],
            eos_token_id=self.vocabulary["<eos>"],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(config)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token to id: special tokens, the words of the prompt, relations, values, entities, the ending."""
        words = [word for word in _PROMPT.split() if "{" not in word] + self.relations
        words += [value for values in self.values for value in values] + self.entities
        words += [_ENDING] * (self.config.style_agreement > 0)
        return {word: i for i, word in enumerate((*_SPECIAL_TOKENS, *words))}

    def _rng(self, purpose: str, *seed_and_n: int) -> np.random.Generator:
        if seed_and_n and seed_and_n[-1] < 1:
            raise ValueError(f"n, the number of {purpose.split('-')[0]}, must be at least 1, got {seed_and_n[-1]}.")
        return np.random.default_rng([self.config.seed, *purpose.encode(), *seed_and_n])

    def _prompt(self, relation: int, entity: int) -> str:
        return _PROMPT.format(relation=self.relations[relation], entity=self.entities[entity])

    def _sample_values(self, rng, relations: np.ndarray, entities: np.ndarray) -> np.ndarray:
        # Gumbel-max trick: one draw from the categorical distribution of every row.
        log_p = self.log_probabilities[relations, entities]
        return (log_p + rng.gumbel(size=log_p.shape)).argmax(axis=1)

    def _question(self, id: str, relation: int, entity: int, answer: int, options: np.ndarray) -> dict:
        target = softmax(self.log_probabilities[relation, entity, options])
        return {
            "id": id,
            "question": self._prompt(relation, entity),
            "choices": [self.values[relation][v] for v in options],
            "answer": int(np.flatnonzero(options == answer)[0]),
            "subject": self.relations[relation],
            "target_probabilities": target.tolist(),
        }
