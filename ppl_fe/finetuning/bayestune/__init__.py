"""BayesTune, stage 1: how far a task lets each weight move from its pretrained value.

(1) The posterior (Kim & Hospedales 2023, NeurIPS), of offsets Δ_i = w_i − anchor_i and scales λ_i:

        λ_i ~ Gamma(α, rate β),   Δ_i ~ Laplace(0, λ_i),   targets ~ likelihood(f(w, inputs))^{N̂/n}

    λ integrated out, an offset has the density m in closed form, and given its offset a scale is
    independent of all else. So the chain moves offsets under m(Δ) p(data | w)^{N̂/n}, and scales
    are drawn, or averaged out, at kept draws only.                        scale_posterior.py

(2) A step, ε = 2η, with ĝ a minibatch's estimate of the gradient of log p(data | w)^{N̂/n}:

        y  = Δ + η ĝ(w) + √η σ ξ            ξ ~ N(0, I): a noisy view of the offsets
        Δ' ~ density ∝ m(Δ') N(Δ'; y, η I)  exact, coordinate by coordinate
        λ' ~ p(λ | Δ')                      exact, at kept draws

    m is never differentiated. In units of √η it is v = y/√η and u = Δ'/√η, u read off a table of
    quantiles.                                       proximal_step.py, with quantile_tables.py

(3) What makes it run at 10⁷ weights: v and u are computed block by block within a cache, their
    noise made from a counter in registers, and σ² = 1 − η(a + s²) makes up for each weight's
    curvature a and gradient noise s², so that steps can be long.                    at_scale/

(4) Which N̂, and gradients for an N̂ > n: as many weights are pulled by several β, by N̂|∂L/∂w|, as
    may be selected, and ĝ is a control variate.               pulls.py, control_variates.py

The folder, in the order of reading:

    scale_posterior.py   m, and λ given Δ: equation (1)
    proximal_step.py     y, Δ': equation (2)
    quantile_tables.py   the tables that Δ' is read off
    pulls.py             how hard the data pull at weights, and the N̂ at which a posterior can tell
    chance.py            which share of the strongest pulls the choice of the rows alone would give
    control_variates.py  gradients without most of the minibatches' noise
    data_count.py        both put together for a task
    at_scale/            the same step for 10⁷ weights; the stiffness that sets ε and σ
    grouped.py           one scale for a layer or a row
    offsets.py           the vector of offsets, in blocks, and the network's weights with it
    scale_chains.py      the chains: start, tune, step, keep; how they stand
    restarts.py          all of them in turn: `run_chains`
    scale_moments.py     mean, sd, R-hat and MCSE of every scale over the kept draws
    sequence_errors.py   errors of the few scales of groups, from all of their draws
    chain_agreement.py   how many of the weights that one chain would select another selects, too
"""
