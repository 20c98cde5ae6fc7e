// An adapter that another program has made, checked against its base and published as a job's own are.
import EdgeFormats
import EdgeJobs
import EdgeModel
import EdgeTrain

func importAdapter(_ order: WorkOrder.ImportAdapterOrder) throws {
    let spec = try BaseModel.open(path: order.modelPath).spec
    try InitialAdapter(tensors: order.tensorsPath, config: order.configPath, spec: spec)
        .publish(to: order.outputDirectory, baseModel: order.baseModel, spec: spec)
}
