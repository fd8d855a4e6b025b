"""The embeddings of a corpus, checked or made, and the encoder of what is asked of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from workflow_scripts.core.errors import StudyError
from workflow_scripts.core.files import folder_hash
from workflow_scripts.core.parquet import read_metadata, read_table
from workflow_scripts.corpora.tables import take_examples
from workflow_scripts.corpora.templates import EncoderText, encoder_text
from workflow_scripts.models.loading import model_folder
from workflow_scripts.search.light_encoder import load_light_encoder
from workflow_scripts.search.query import Query
from workflow_scripts.study.choices import View
from workflow_scripts.study.sections import Encoder, EncoderTraining

if TYPE_CHECKING:
    from workflow_scripts.encoder.model import AttributionEncoder

PROMPT_WORDS = Encoder().prompt_words
CHUNK_TOKENS = EncoderTraining().chunk_tokens
# Rows whose stored embeddings are compared with those of the light encoder, and how far they may be apart: half
# precision rounds by 2^-11 of each number.
COMPARED_ROWS, COMPARED_AMONG = 3, 256
MAX_DISTANCE = 2e-3
# Passes in bfloat16 or on another device round more than that: 3e-3 for the encoder of config.yaml. Prompts that were
# cut elsewhere are further apart: 0.06 for the same, cut at 20 words.
MAX_FOREIGN_DISTANCE = 0.02

_Encode = Callable[[Sequence[EncoderText]], np.ndarray]


@dataclass(frozen=True)
class EmbeddedCorpus:
    """A corpus's embeddings, and what embeds queries as they were made.

    Parameters
    ----------
    embeddings: file of the embeddings.
    encode: returns the embeddings of texts, float32 [texts, dimension].
    view: whether a text is one piece, or prompt and response apart.
    prompt_words: number of words of a prompt that are read.
    """

    embeddings: Path
    encode: _Encode
    view: View
    prompt_words: int

    def vectors(self, queries: Sequence[Query]) -> np.ndarray:
        """Return the vectors of queries, float32 [queries, dimension]; with a `contrast`, the difference of two.

        Under the view `split`, a query without a response is compared by its prompt alone: what an encoder makes of an
        empty text would rank the same short answers first, whatever was asked.
        """
        vectors = self._vectors([(query.prompt, query.response) for query in queries])
        if self.view == "split":
            without = [place for place, query in enumerate(queries) if not query.response.strip()]
            # Both parts have as many numbers.
            vectors[without, vectors.shape[1] // 2 :] = 0
        against = [place for place, query in enumerate(queries) if query.contrast is not None]
        if against:
            others = [(queries[place].prompt, queries[place].contrast or "") for place in against]
            # An inner product with a difference is the difference of the inner products.
            vectors[against] -= self._vectors(others)
        return vectors

    def distances(self, corpus: Path) -> np.ndarray:
        """Return how far some of the corpus's first rows are from their stored embeddings, as shares of their norms.

        Parameters
        ----------
        corpus: the `corpora/` file; of its rows short and long ones are embedded, and the one with the longest prompt.
        """
        with pq.ParquetFile(self.embeddings) as file:
            stored = next(file.iter_batches(COMPARED_AMONG, columns=["example_id", "embedding"]))
        table = take_examples(corpus, stored["example_id"].to_numpy(), ["prompt", "response"])
        rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        by_length = sorted(range(len(rows)), key=lambda row: len("".join(rows[row])))
        chosen = [by_length[place] for place in np.linspace(0, len(rows) - 1, COMPARED_ROWS).astype(int)]
        chosen.append(max(range(len(rows)), key=lambda row: len(rows[row][0])))
        vectors = self._vectors([rows[row] for row in chosen])
        expected = stored["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)[chosen]
        apart = np.linalg.norm(vectors - expected.astype(np.float32), axis=1)
        return apart / np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)

    def _vectors(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return self.encode([encoder_text(prompt, response, self.prompt_words, self.view) for prompt, response in pairs])


@contextmanager
def embedded_corpus(
    encoder: str, corpus: Path, embeddings: Path | None, *, without_torch: bool, prompt_words: int = PROMPT_WORDS
) -> Iterator[EmbeddedCorpus]:
    """Yield the embeddings of a corpus, made if they aren't there, with their encoder.

    Parameters
    ----------
    encoder: folder or hub id of a trained encoder.
    corpus: a `corpora/` file of the workflow.
    embeddings: Parquet file of this corpus's embeddings by this encoder; computed and written there if it doesn't
        exist, computed and deleted at the end of the block if None.
    without_torch: embed queries in NumPy where that gives what is stored: sooner there, but slower a query.
    prompt_words: number of words of a prompt that are read, `encoder.prompt_words` of the encoder's study.

    Raises
    ------
    StudyError: the model or a file can't be read, or `embeddings` come from another encoder or another corpus, or were
        made with another number of words.
    """
    folder = model_folder(encoder)
    light = None
    if embeddings is not None and embeddings.exists() and without_torch:
        light = load_light_encoder(folder)
    if light is not None and embeddings is not None:
        _check_embeddings(embeddings, corpus, folder, light.dimension, prompt_words)
        embedded = EmbeddedCorpus(embeddings, light.encode, light.view, prompt_words)
        if (embedded.distances(corpus) <= MAX_DISTANCE).all():
            yield embedded
            return
    model = _load(folder)

    def encode(texts: Sequence[EncoderText]) -> np.ndarray:
        return model.encode(model.tokenize(texts), CHUNK_TOKENS)

    with tempfile.TemporaryDirectory() as temporary:
        file = embeddings or Path(temporary) / "embeddings.parquet"
        embedded = EmbeddedCorpus(file, encode, model.view, prompt_words)
        if file.exists():
            _check_embeddings(file, corpus, folder, model.dimension, prompt_words)
            # A number that is none is told where it is scored.
            if (embedded.distances(corpus) > MAX_FOREIGN_DISTANCE).any():
                raise StudyError(
                    f"{file} doesn't hold what {folder} gives for rows of {corpus} with --prompt-words {prompt_words}. "
                    "Give --prompt-words the encoder.prompt_words of the study that made it. Where something else has "
                    "changed, name a file that doesn't exist yet, and it is made."
                )
        else:
            _embed(corpus, folder, file, prompt_words, model.max_tokens)
        yield embedded


def _load(folder: Path) -> AttributionEncoder:
    # Both take seconds to load.
    import transformers

    from workflow_scripts.encoder.loading import load_trained_encoder

    # What transformers logs while it loads is about weights that no encoder has (see `load_encoder`).
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return load_trained_encoder(folder)


def _embed(corpus: Path, folder: Path, embeddings: Path, prompt_words: int, max_tokens: int) -> None:
    from workflow_scripts.embeddings.embed_corpus import embed_corpus

    embed_corpus(
        corpus,
        folder,
        embeddings,
        prompt_words=prompt_words,
        max_tokens=max_tokens,
        embedding_precision="float16",
        chunk_tokens=CHUNK_TOKENS,
        precision="float32",
    )


def _check_embeddings(embeddings: Path, corpus: Path, folder: Path, dimension: int, prompt_words: int) -> None:
    metadata = read_metadata(embeddings)
    made_by, words = metadata.get("encoder"), metadata.get("prompt_words")
    try:
        size = pq.read_schema(embeddings).field("embedding").type.list_size
    except (KeyError, AttributeError):
        raise StudyError(f"{embeddings} holds no embeddings; name a file of an `embeddings/` folder.") from None
    if size != dimension or made_by not in (None, folder_hash(folder)):
        raise StudyError(
            f"{embeddings} was made by another encoder than {folder}. Name another file, or one that doesn't exist "
            "yet, and it is made."
        )
    # Those of earlier versions don't say it.
    if words not in (None, str(prompt_words)):
        raise StudyError(
            f"{embeddings} was made from the first {words} words of each prompt, and --prompt-words is {prompt_words}. "
            f"Write --prompt-words {words}."
        )
    if not read_table(embeddings, ["hash"])["hash"].equals(read_table(corpus, ["hash"])["hash"]):
        raise StudyError(
            f"{embeddings} was made from another corpus, or from this one before it was changed. Name another file, or "
            "one that doesn't exist yet, and it is made."
        )
