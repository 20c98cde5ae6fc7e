// Errors of the data plane as problems of the API: the one place where their text and their numbers meet a user.
import EdgeFormats
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire
import Glibc

extension Problem {
    init(workError error: any Error) {
        switch error {
        case let problem as Problem: self = problem
        case let error as PlanError:
            switch error {
            case .doesNotFit(let needed, let budget, let changes):
                self.init(
                    .insufficientMemory,
                    "needs \(needed.mebibytes) MiB at least, the budget is \(budget.mebibytes) MiB; any one of these would fit",
                    hint: changes.map { "\($0.line)   # \($0.note)" }.joined(separator: "\n"),
                    requiredBytes: UInt64(needed.bytes), budgetBytes: UInt64(budget.bytes))
            }
        case let error as ModelError: self.init(.unsupportedModel, error.description)
        case let error as ImportError: self.init(.unsupportedModel, error.description)
        case let error as GGUFError:
            self.init(.unsupportedModel, error.description, hint: "a GGUF file of version 2 or 3; download it again if it is cut off")
        case let error as TokenizerError: self.init(.unsupportedModel, "\(error)")
        case let error as ChatTemplateError: self.init(.unsupportedModel, "chat template: \(error.description)")
        case let error as AdapterStartError:
            switch error {
            case .nonFiniteActivation, .nonFiniteWeight: self.init(.unsupportedModel, error.description)
            case .otherModel, .sameWeights:
                self.init(.invalidValue, error.description, hint: "original_model: the same model in f32, f16, bf16 or q8_0")
            case .rankAboveInputs: self.init(.invalidValue, error.description, hint: "a smaller lora_r, or rank_pattern for such modules")
            }
        case let error as AdapterTargetError: self.init(.invalidValue, error.description)
        case let error as DatasetError:
            // The daemon's own copy: what ails it is the machine's fault.
            if case .cannotRead = error.reason { self.init(.internalError, error.description) } else { self.init(.badDataset, error.description) }
        case let error as TrainingTextError: self.init(.badDataset, error.description)
        case let error as TrainingError:
            switch error {
            case .nonFinite, .nonFiniteEvaluation, .nonFiniteAdapter:
                self.init(.nonFinite, error.description, hint: "a lower learning_rate, or max_grad_norm: 1")
            case .noSamples, .noLossTokens: self.init(.badDataset, error.description)
            }
        case let error as LoadedAdapterError:
            if case .differs(let lines) = error {
                self.init(.badAdapter, error.description, hint: lines.joined(separator: "\n"))
            } else {
                self.init(.badAdapter, error.description)
            }
        case let error as SafetensorsError: self.init(.badAdapter, error.description)
        case let error as LZ4FrameError: self.init(.badAdapter, error.description)
        case let error as JSONTextError: self.init(.badAdapter, "adapter_config.json: \(error.description)")
        case let error as AdapterMismatch: self.init(.badAdapter, error.description)
        case let error as AdapterError:
            switch error {
            case .needsTask:
                self.init(
                    .invalidValue, error.description,
                    hint: "generate, merge and export take one with --task; what export gives is a LoRA that adapters add brings in")
            case .unknownTask: self.init(.invalidValue, error.description)
            default: self.init(.badAdapter, error.description)
            }
        case let error as CombinationError: self.init(.badAdapter, error.description)
        case let error as SensitivityError: self.init(.nonFinite, error.description)
        case let error as RankAllocationError: self.init(.invalidValue, error.description)
        case let error as CompositionError:
            if case .nonFinite = error { self.init(.nonFinite, error.description) } else { self.init(.badAdapter, error.description) }
        case let error as MergeError: self.init(.invalidValue, error.description)
        case let error as GenerationError: self.init(.invalidValue, error.description)
        case let error as KernelSetError: self.init(.invalidValue, error.description)
        case let error as PrecisionError:
            self.init(.invalidValue, error.description, hint: "precision: auto, or one of those")
        case let error as CheckpointError: self.init(.internalError, error.description)
        case let error as ArenaError:
            self.init(.insufficientMemory, error.description, requiredBytes: UInt64(error.requested.bytes))
        case let error as FileError:
            self.init([ENOSPC, EDQUOT].contains(error.errno) ? .insufficientDisk : .internalError, error.description)
        default: self.init(.internalError, "\(error)")
        }
    }
}
