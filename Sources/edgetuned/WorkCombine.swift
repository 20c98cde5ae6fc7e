// Several adapters of one base, read, combined, and published as a job's own are.
import EdgeJobs
import EdgeModel
import EdgeTensor
import EdgeTrain
import EdgeWire

func combineAdapters(_ order: WorkOrder.CombineOrder) throws {
    let request = order.request
    let sizes = try order.adapterDirectories.map { try AdapterArtifact.tensorFileBytes($0).bytes }
    // Each as values, and twice while it is read; the sum of all as what comes of them, and its copy in a file's order.
    let needed = ProcessFacts.idleBytes + UInt64(sizes.reduce(0, +) * 4 + (sizes.max() ?? 0))
    guard needed <= order.budgetBytes else {
        throw Problem(
            .insufficientMemory, "combining needs \(needed >> 20) MiB, the budget is \(order.budgetBytes >> 20) MiB",
            hint: "fewer adapters at once, or when no job runs", requiredBytes: needed, budgetBytes: order.budgetBytes)
    }
    let spec = try BaseModel.open(path: order.modelPath).spec
    let adapters = try order.adapterDirectories.map { try LoadedAdapter(directory: $0, of: spec) }
    let combination = AdapterCombination(
        AdapterCombination.Kind(request.combination), weights: request.adapters.map(\.weight), density: request.density ?? 1,
        rank: request.rank, seed: request.seed ?? 42)
    let parts = request.adapters.map { "\($0.weight) of \($0.adapter)" }.joined(separator: ", ")
    try combination.combine(adapters).publish(
        to: order.outputDirectory, baseModel: order.baseModel, spec: spec, source: "combined",
        note: "Combined by \(request.combination.rawValue) from \(parts)")
}

extension AdapterCombination.Kind {
    fileprivate init(_ kind: CombinationKind) {
        switch kind {
        case .linear: self = .linear
        case .cat: self = .cat
        case .svd: self = .svd
        case .truncate: self = .truncate
        case .ties: self = .ties
        case .dareLinear: self = .dareLinear
        case .dareTies: self = .dareTies
        case .magnitudePrune: self = .magnitudePrune
        }
    }
}
