"""How well a mask agrees with a reference: Dice, surface Dice, HD95, volumes."""
