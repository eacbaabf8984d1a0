"""Datasets: found on the login node (`locate`), read by the ranks (`images`, `table`), ordered (`order`, `batches`)."""
