"""Datasets: found on the login node (`locate`), read and ordered by the ranks (`images`, `order`, `batches`)."""
