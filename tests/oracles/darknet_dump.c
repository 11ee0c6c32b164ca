/* Every layer's output of the C program, for one cfg, weights and input: float32, one layer after the other.
 *
 *     gcc -O2 -Iinclude darknet_dump.c libdarknet.a -lm -lpthread -o darknet_dump
 *     gcc -O2 -DFORK -Iinclude darknet_dump.c libdarknet.so -lm -lpthread -o darknet_dump     for the fork
 *     ./darknet_dump NET.cfg NET.weights INPUT.f32 OUTPUTS.f32 [WIDTH HEIGHT THRESHOLD DETECTIONS.txt]
 *
 * With four more arguments the first program also detects, as `darknet detector test` does, in an image of that size
 * that was letterboxed to the input: class, score, centre, width and height in pixels of the image, after do_nms_sort.
 *
 * The program prints its layer table on standard error, the fork on both. A [yolo] layer works on a copy of its input,
 * so the raw heads are the outputs of the convolutions before them.
 */
#include "darknet.h"

#ifdef FORK
void set_batch_network(network *net, int b);    /* of src/network.h, which the fork keeps to itself */
#define PREDICT(net, input) network_predict(*(net), input)
#else
#define PREDICT(net, input) network_predict(net, input)
#endif

int main(int argc, char **argv) {
    if (argc != 5 && argc != 9) {
        fprintf(stderr, "usage: darknet_dump NET.cfg NET.weights INPUT.f32 OUTPUTS.f32 [W H THRESHOLD DETECTIONS.txt]\n");
        return 2;
    }
    network *net = load_network(argv[1], argv[2], 0);
    set_batch_network(net, 1);
    size_t count = (size_t)net->w * net->h * net->c;
    float *input = malloc(count * sizeof(float));
    FILE *file = fopen(argv[3], "rb");
    if (!file || fread(input, sizeof(float), count, file) != count) {
        fprintf(stderr, "input: expected %zu floats\n", count);
        return 2;
    }
    PREDICT(net, input);
    FILE *out = fopen(argv[4], "wb");
    for (int i = 0; i < net->n; ++i) fwrite(net->layers[i].output, sizeof(float), net->layers[i].outputs, out);
    if (fclose(out)) return 1;
#ifndef FORK
    if (argc == 9) {
        int found = 0, classes = net->layers[net->n - 1].classes;
        detection *dets = get_network_boxes(net, atoi(argv[5]), atoi(argv[6]), atof(argv[7]), .5, 0, 0, &found);
        do_nms_sort(dets, found, classes, .45);
        out = fopen(argv[8], "w");
        for (int i = 0; i < found; ++i)
            for (int k = 0; k < classes; ++k)
                if (dets[i].prob[k] > 0)
                    fprintf(out, "%d %.7g %.7g %.7g %.7g %.7g\n", k, dets[i].prob[k], dets[i].bbox.x, dets[i].bbox.y,
                            dets[i].bbox.w, dets[i].bbox.h);
        return fclose(out);
    }
#endif
    return 0;
}
