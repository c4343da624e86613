"""Captioned pictures, the fetcher of pinned packages, and the measures taken on them."""
