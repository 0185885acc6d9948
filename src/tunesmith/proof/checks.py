"""The checks of ids, template and logits, each of which finds faults that the others do not see.

A wrong pre-tokenizer changes ids only, a missing template prompts only, a wrong constant of a layer logits only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from tunesmith.core.errors import TunesmithError
from tunesmith.engines.base import Engine
from tunesmith.proof.asking import ask_all
from tunesmith.proof.distributions import Scores, divergence, finite, most_probable
from tunesmith.proof.questions import Conversation, Questions
from tunesmith.proof.record import ANSWERED, Check, Measure
from tunesmith.proof.reference import TOP, Reference
from tunesmith.proof.tolerances import Tolerance

IDS, TEMPLATE, LOGITS = "ids", "template", "logits"

_EXAMPLES = 3  # of differences that the details name
_PROMPTS = 4  # texts that are also compared with the control tokens around a prompt


def check_ids(engine: Engine, questions: Questions) -> Check:
    """Compare the ids of probes and of the rows' texts, in which control tokens keep their function.

    Some texts are also compared as prompts of their own, which have the control tokens that the tokenizer adds.
    """
    tokenizer, texts = questions.tokenizer, list(questions.texts)
    expected = [tokenizer.encode_trusted(text) for text in texts]
    found = ask_all("proof: ids", engine.encode, texts, unit="texts")
    if found is None:
        return Check(IDS, impossible=f"{engine.name} does not give the ids of a text")
    before, after = tokenizer.special_tokens_around(target=False)
    prompts = [[*before, *ids, *after] for ids in expected[:_PROMPTS]]
    prompts_found = [engine.encode(text, add_special=True) or [] for text in texts[:_PROMPTS]]
    wrong = [i for i, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]]
    wrong_prompts = [i for i, pair in enumerate(zip(prompts, prompts_found, strict=True)) if pair[0] != pair[1]]
    names = list(questions.texts.values())
    details = [_difference(names[i], expected[i], found[i]) for i in wrong[:_EXAMPLES]]
    details += [_difference(f"{names[i]} as a prompt", prompts[i], prompts_found[i]) for i in wrong_prompts[:1]]
    measures = (
        Measure.all_of("equal texts", len(texts) - len(wrong), len(texts)),
        Measure.all_of("equal prompts of text alone", len(prompts) - len(wrong_prompts), len(prompts)),
    )
    return Check(IDS, measures, tuple(details))


def check_template(engine: Engine, questions: Questions) -> Check:
    """Compare the prompts of conversations: with and without a system turn, with several turns, and of the rows."""
    conversations = questions.conversations
    if not conversations:
        return Check(TEMPLATE, impossible="the model is not asked with conversations")
    refusals: list[str] = []

    def refused(one: Conversation, error: TunesmithError) -> list[int]:
        refusals.append(f"{one.name}: {error.message}")
        return []

    found = ask_all(
        "proof: template",
        lambda one: engine.encode_chat(one.messages),
        conversations,
        unit="conversations",
        refused=refused,
    )
    if found is None:
        return Check(TEMPLATE, impossible=f"{engine.name} does not give the prompt of a conversation")
    pairs = list(zip(conversations, map(tuple, found), strict=True))
    adds_system = any(ids == one.with_system for one, ids in pairs)
    wrong = [(one, ids) for one, ids in pairs if ids != _expected(one, adds_system=adds_system)]
    if wrong and questions.unsent:
        unsent = f"the prompts of this model have {questions.unsent}, which the client sends besides the messages"
        return Check(TEMPLATE, impossible=unsent)
    details = refusals[:1] or [_difference(one.name, one.ids, ids) for one, ids in wrong[:_EXAMPLES]]
    if adds_system:
        details.append("the recipe's system turn is put first if a conversation has none")
    return Check(TEMPLATE, (Measure.all_of("equal prompts", len(pairs) - len(wrong), len(pairs)),), tuple(details))


@dataclass(frozen=True, slots=True)
class EngineScores:
    """An engine's distributions at each token of the reference's answers.

    Attributes:
        wanted: the tokens, by the place of the answer; without prompts that the engine refused.
        scores: one distribution for each of them, in their order.
    """

    wanted: Mapping[int, Sequence[int]]
    scores: Sequence[Scores]


@dataclass(frozen=True, slots=True)
class Distances:
    """How far distributions are from those of the reference.

    Attributes:
        mean_kl: the mean divergence per token, in nats.
        largest: the largest difference in the log-probability of a token of the answers, in nats.
        same_first: the number of tokens at which the most probable token is the same.
        tokens: the number of tokens.
    """

    mean_kl: float
    largest: float
    same_first: int
    tokens: int

    def measures(self, tolerance: Tolerance | None) -> tuple[Measure, ...]:
        """Return the distances with the limits of a tolerance, or without limits."""
        mean_kl, largest = (tolerance.mean_kl, tolerance.max_difference) if tolerance else (None, None)
        return (
            Measure("mean KL divergence per token (nats)", self.mean_kl, at_most=mean_kl),
            Measure("largest difference of a log-probability (nats)", self.largest, at_most=largest),
            Measure("equal most probable tokens", self.same_first, self.tokens),
        )


def ask_scores(engine: Engine, reference: Reference) -> EngineScores | None:
    """Return the engine's distributions at the reference's answers; None if one of the two gives none."""
    if not reference.scored:
        return None
    places = list(reference.scored)
    wanted = {place: reference.answer_with_end(place)[: len(reference.scored[place])] for place in places}
    found = ask_all(
        "proof: logits",
        lambda place: engine.token_scores(reference.answers[place].prompt, wanted[place], TOP),
        places,
        unit="answers",
        refused=lambda place, error: [],
    )
    if found is None:
        return None
    answered = {place: scores for place, scores in zip(places, found, strict=True) if scores}
    every = list(map(finite, chain.from_iterable(answered.values())))
    return EngineScores({place: wanted[place] for place in answered}, every)


def check_logits(engine_name: str, scores: EngineScores | None, reference: Reference, tolerance: Tolerance) -> Check:
    """Compare the distributions at each token of the reference's answers, given the same tokens before it."""
    if not reference.scored:
        return Check(LOGITS, impossible="the reference has no log-probabilities")
    if scores is None:
        return Check(LOGITS, impossible=f"{engine_name} does not give the log-probabilities of given tokens")
    answered = Measure.all_of(ANSWERED, len(scores.wanted), len(reference.scored))
    if not scores.wanted:
        return Check(LOGITS, (answered,))
    found = distances(scores, reference.scores_of(scores.wanted))
    return Check(LOGITS, (*found.measures(tolerance), answered))


def distances(scores: EngineScores, ours: Sequence[Scores]) -> Distances:
    """Return how far an engine's distributions are from ours at the same tokens."""
    tokens = list(chain.from_iterable(scores.wanted.values()))
    triples = list(zip(tokens, ours, scores.scores, strict=True))
    return Distances(
        mean_kl=sum(divergence(our, their, TOP) for _, our, their in triples) / len(triples),
        largest=max(abs(our[token] - _score(their, token)) for token, our, their in triples),
        same_first=sum(most_probable(our) == most_probable(their) for _, our, their in triples),
        tokens=len(triples),
    )


def _score(scores: Scores, token: int) -> float:
    """Return a token's log-probability; if it is not given, that of the last given one, which is at least as high."""
    return scores[token] if token in scores else min(scores.values())


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """Return the length of the common beginning of two sequences."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(first), len(second)))


def _expected(one: Conversation, *, adds_system: bool) -> tuple[int, ...]:
    return one.with_system if adds_system and one.with_system is not None else one.ids


def _difference(name: str, expected: Sequence[int], found: Sequence[int]) -> str:
    """Return a sentence about the first id that differs."""
    start = common_length(expected, found)
    here, there = (list(islice(ids, start, start + 4)) for ids in (expected, found))
    return f"{name}: from token {start + 1} on, {here} is expected and {there} was found"
