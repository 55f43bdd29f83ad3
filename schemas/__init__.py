"""What is agreed: errors, event schemas, and the two documents, policy and job."""
