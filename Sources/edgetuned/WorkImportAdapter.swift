// An adapter that another program has made, checked against its base and published as a job's own are.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTrain

func importAdapter(_ order: WorkOrder.ImportAdapterOrder) throws {
    let spec = try BaseModel.open(path: order.modelPath).spec
    // Once as a frame holds them, and once as values.
    let limitBytes = Int(clamping: order.budgetBytes - min(order.budgetBytes, ProcessFacts.idleBytes)) / 2
    try LoadedAdapter(tensors: order.tensorsPath, config: order.configPath, spec: spec, limitBytes: limitBytes)
        .publish(to: order.outputDirectory, baseModel: order.baseModel, spec: spec, note: "Brought in, not trained here")
}
