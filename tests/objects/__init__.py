"""Object storage: real servers of S3 on loopback, and what goes wrong between them and us."""
