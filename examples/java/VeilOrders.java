import org.apache.beam.sdk.Pipeline;
import org.apache.beam.sdk.extensions.python.PythonExternalTransform;
import org.apache.beam.sdk.io.TextIO;
import org.apache.beam.sdk.options.Description;
import org.apache.beam.sdk.options.PipelineOptions;
import org.apache.beam.sdk.options.PipelineOptionsFactory;
import org.apache.beam.sdk.options.Validation.Required;
import org.apache.beam.sdk.values.PCollection;
import org.apache.beam.sdk.values.PCollectionTuple;
import org.apache.beam.sdk.values.TupleTag;

/** Orders, a line of JSON each, become anonymous orders; what the policy refuses becomes sealed letters. */
public final class VeilOrders {

  public interface Options extends PipelineOptions {
    @Description("Where `eventveil expansion-service` answers, as host:port.")
    @Required
    String getExpansionService();

    void setExpansionService(String value);

    @Description("The files to read, one event a line.")
    @Required
    String getInput();

    void setInput(String value);

    @Description("The policy. Read by the expansion service, as is the custodian's public key.")
    @Required
    String getPolicy();

    void setPolicy(String value);

    @Description("The keyring. Read by the Python workers; it never gets into the pipeline.")
    @Required
    String getKeys();

    void setKeys(String value);

    @Description("The custodian's public key, to which refused events are sealed.")
    @Required
    String getCustodian();

    void setCustodian(String value);

    @Description("The folder to write to.")
    @Required
    String getOutput();

    void setOutput(String value);
  }

  public static void main(String[] args) {
    Options options = PipelineOptionsFactory.fromArgs(args).withValidation().as(Options.class);
    Pipeline pipeline = Pipeline.create(options);

    // Text in, text out; bytes in, bytes out.
    PCollectionTuple veiled =
        pipeline
            .apply("ReadOrders", TextIO.read().from(options.getInput()))
            .apply(
                "Anonymize",
                PythonExternalTransform.<PCollection<String>, PCollectionTuple>from(
                        "eventveil.transforms.beam.messages.AnonymizeMessages", options.getExpansionService())
                    .withKwarg("policy", options.getPolicy())
                    .withKwarg("keys", options.getKeys())
                    .withKwarg("custodian", options.getCustodian()));

    veiled.get(new TupleTag<String>("events") {}).apply("WriteEvents", TextIO.write().to(options.getOutput() + "/events"));
    veiled.get(new TupleTag<String>("refused") {}).apply("WriteRefused", TextIO.write().to(options.getOutput() + "/refused"));
    pipeline.run().waitUntilFinish();
  }
}
