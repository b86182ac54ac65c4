"""Imported by the fork server once, so that each forked run begins at once. Imports only, nothing is computed here."""

import duckdb  # noqa: F401
import lancedb.embeddings
import lancedb.expr
import lancedb.index
import lancedb.query  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import scipy.stats  # noqa: F401
import sentence_transformers  # noqa: F401
import sklearn.feature_extraction.text  # noqa: F401
import torch  # noqa: F401
import transformers.models.bert.modeling_bert
import transformers.models.bert.tokenization_bert  # noqa: F401

import acme_rag_pipeline_tests.increments.worker  # noqa: F401
