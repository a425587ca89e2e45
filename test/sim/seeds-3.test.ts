import { seedsOfPart } from './seeds.ts'

seedsOfPart(3)
