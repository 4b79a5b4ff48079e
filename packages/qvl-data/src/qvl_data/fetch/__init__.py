"""Fetching: lists of URLs become shards of samples with their pictures inside."""
