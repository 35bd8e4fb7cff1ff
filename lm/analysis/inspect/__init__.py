"""`char-lm inspect`: what a model does with a text, channel by channel, as one page that runs the model."""
