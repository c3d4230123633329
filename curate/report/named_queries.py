"""Questions that are asked of many runs, as SQL over the tables of the reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NamedQuery:
    """One question."""

    about: str
    """What it answers, in a few words."""
    sql: str


QUERIES = {
    "decisions": NamedQuery(
        "what became of the images",
        "SELECT decision, count(*) AS images FROM images GROUP BY ALL ORDER BY images DESC, decision",
    ),
    "reasons": NamedQuery(
        "why images were dropped; reasons that differ in numbers and keys only count as one",
        """SELECT decision,
    regexp_replace(regexp_replace(reason, ' (with|as) [^,]+', ' \\1 ...'), '[0-9]+', 'N', 'g') AS why,
    count(*) AS images, min(key) AS example
FROM images WHERE decision <> 'kept' GROUP BY ALL ORDER BY images DESC, decision, why""",
    ),
    "kept-by-source": NamedQuery(
        "how much each source gave: the host of the URL, or the part where there is none",
        """SELECT coalesce(nullif(regexp_extract(url, '^[a-zA-Z]+://([^/:?#]+)', 1), ''), part) AS source,
    count(*) AS images, count(*) FILTER (decision = 'kept') AS kept,
    round(100 * avg((decision = 'kept')::INT), 1) AS percent
FROM images GROUP BY ALL ORDER BY kept DESC, images DESC, source""",
    ),
    "kept-by-part": NamedQuery(
        "how much each part of the crawl gave",
        """SELECT part, count(*) AS images, count(*) FILTER (decision = 'kept') AS kept,
    count(*) FILTER (decision = 'duplicate') AS copies FROM images GROUP BY ALL ORDER BY part""",
    ),
    "kept-by-seed-image": NamedQuery(
        "which seed images brought in most",
        """SELECT nearest_seed, count(*) AS kept, round(avg(seed_similarity), 4) AS mean_cosine
FROM images WHERE decision = 'kept' GROUP BY ALL ORDER BY kept DESC, nearest_seed""",
    ),
    "seed-similarities": NamedQuery(
        "relevance in bands of 0.05: what another retrieve.threshold would keep",
        """SELECT floor(20 * seed_similarity) / 20 AS at_least, count(*) AS images,
    count(*) FILTER (decision = 'kept') AS kept
FROM images WHERE seed_similarity IS NOT NULL GROUP BY ALL ORDER BY at_least DESC""",
    ),
    "largest-groups": NamedQuery(
        "the largest groups of copies",
        """SELECT max(key) FILTER (representative) AS representative, count(*) AS images,
    round(min(similarity), 4) AS lowest_cosine
FROM copies GROUP BY "group" ORDER BY images DESC, representative""",
    ),
    "doubtful-copies": NamedQuery(
        "copies by the search that are least similar to what stands for them",
        """SELECT images.key, duplicate_of, round(duplicate_similarity, 4) AS cosine
FROM images JOIN copies USING (key)
WHERE decision = 'duplicate' AND method = 'near' ORDER BY duplicate_similarity, images.key""",
    ),
    "sizes": NamedQuery(
        "kept images by the length of their shorter side",
        """SELECT 64 * (least(width, height) // 64) AS at_least_px, count(*) AS kept
FROM images WHERE decision = 'kept' GROUP BY ALL ORDER BY at_least_px""",
    ),
}
