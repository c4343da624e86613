"""Pictures with captions, digits, puzzles; the fetcher of pinned packages; the measures taken on them."""
