"""LM-BFF: Making Pre-trained Language Models Better Few-shot Learners (ACL 2021), reproduced."""
