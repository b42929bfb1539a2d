"""Where option questions come from: real data sets (`mcq`) and the synthetic world (`world`)."""
