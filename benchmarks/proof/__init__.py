"""Does curation help? One pool, trainings on what each part of the pipeline leaves of it."""
