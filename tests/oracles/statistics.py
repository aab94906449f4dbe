"""Fisher values and Gram matrices in float64, one example and one answer at a time; no line of stockpot is used."""

import torch


def log_chances(net, inputs):
    """log p of the classes, ``(places, classes)``: of an example's one answer, or of each token but the first."""
    logits = net(**inputs).logits[0]
    logits = logits[:-1] if logits.dim() == 2 else logits[None]
    return torch.log_softmax(logits, dim=-1)


def squared_gradient(net, inputs, answers):
    """(d log p(answers) / d w)^2 of one example, by parameter."""
    net.zero_grad(set_to_none=True)
    log_chances(net, inputs)[torch.arange(len(answers)), answers].sum().backward()
    return {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone() ** 2
        for name, one in net.named_parameters()
    }


def empirical_fisher(net, examples):
    """(1/n) sum_x of the squared gradient at the data's own answers; ``examples``: (inputs, answers) pairs."""
    return _sum((1 / len(examples), squared_gradient(net, *example)) for example in examples)


def exact_fisher(net, examples):
    """(1/n) sum_x sum_y p(y|x) of the squared gradient; ``examples``: inputs of a classifier."""
    terms = []
    for inputs in examples:
        chances = log_chances(net, inputs).detach().exp()[0]
        terms += [
            (float(chance) / len(examples), squared_gradient(net, inputs, torch.tensor([answer])))
            for answer, chance in enumerate(chances)
        ]
    return _sum(terms)


def exact_fisher_of_language(net, examples):
    """The same of sequences, answers drawn apart at each place: the terms of different places have mean zero."""
    terms = []
    for inputs in examples:
        chances = log_chances(net, inputs).detach().exp()
        for place, own in enumerate(chances):
            for answer, chance in enumerate(own):
                net.zero_grad(set_to_none=True)
                log_chances(net, inputs)[place, answer].backward()
                squares = {name: one.grad.clone() ** 2 for name, one in net.named_parameters() if one.grad is not None}
                terms.append((float(chance) / len(examples), squares))
    return _sum(terms)


def layer_grams(net, kinds, examples):
    """X^T X of what each layer of those kinds is given, by the name of its weight, each example by itself."""
    found, rows, hooks = {}, {}, []

    def watch(name):
        def hook(module, args, output):
            for row in args[0].reshape(-1, args[0].shape[-1]):
                found[name] = found.get(name, 0) + torch.outer(row, row)
                rows[name] = rows.get(name, 0) + 1

        return hook

    for name, module in net.named_modules():
        if type(module).__name__ in kinds:
            hooks.append(module.register_forward_hook(watch(f"{name}.weight")))
    with torch.no_grad():
        for inputs in examples:
            net(**inputs)
    for hook in hooks:
        hook.remove()
    return found, rows


def _sum(terms):
    total = {}
    for share, values in terms:
        for name, one in values.items():
            total[name] = total.get(name, 0) + share * one
    return total
